package app

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"syscall"
)

// ofSetting is an error of the opening of what a setting leads to: it names the setting and, where only the network
// spoke, what to do.
func ofSetting(name string, err error) error {
	var (
		dns       *net.DNSError
		authority x509.UnknownAuthorityError
		host      x509.HostnameError
		header    tls.RecordHeaderError
		late      net.Error
	)
	what := ""
	switch {
	case err == nil:
		return nil
	case errors.As(err, &dns):
		what = "correct the host in its URL"
	case errors.As(err, &host):
		what = "have its URL name the server as its certificate does"
	case errors.As(err, &authority) && name == "store":
		what = "name the authority's file in its URL: sslrootcert=/path/ca.pem"
	case errors.As(err, &header):
		what = "the server speaks no TLS there, and the URL asks for it"
	case errors.Is(err, syscall.ECONNREFUSED):
		what = "nothing listens there: start it, or correct host and port in its URL"
	case errors.Is(err, syscall.EHOSTUNREACH), errors.Is(err, syscall.ENETUNREACH), errors.As(err, &late) && late.Timeout():
		what = "nothing answers there: correct host and port in its URL, or let this machine through the firewall"
	}
	if what == "" {
		return fmt.Errorf("%s: %w", name, err)
	}
	return fmt.Errorf("%s: %w; %s", name, err, what)
}
