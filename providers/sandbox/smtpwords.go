package sandbox

import (
	"bytes"
	"fmt"
	"strconv"
	"strings"
	"unicode/utf8"
)

// smtpFault is an error of a Script, and where in a mail it is given.
type smtpFault struct {
	at   smtpStage
	code int
	line string
}

type smtpStage uint8

const (
	atMail smtpStage = iota + 1
	atRcpt
	atData
)

// smtpFaultOf reads an error code of a Script: "451 4.7.1 greylisted", "data:554 5.7.1 spam", "421".
func smtpFaultOf(text string) (smtpFault, bool) {
	f := smtpFault{at: atRcpt, line: text}
	stage, rest, prefixed := strings.Cut(text, ":")
	if prefixed {
		switch stage {
		case "mail":
			f.at, f.line = atMail, rest
		case "rcpt":
			f.line = rest
		case "data":
			f.at, f.line = atData, rest
		default:
			prefixed = false // a colon within the text
		}
	}
	digits, words, _ := strings.Cut(f.line, " ")
	code, err := strconv.Atoi(digits)
	if err != nil || code < 400 || code > 599 || strings.ContainsAny(f.line, "\r\n") {
		return smtpFault{}, false
	}
	if f.code = code; words == "" {
		f.line = fmt.Sprintf("%d %d.0.0 Scripted answer", code, code/100)
	}
	if code == 421 && !prefixed {
		f.at = atMail
	}
	return f, true
}

// messageID is the left part of a mail's Message-ID, or "".
func messageID(content []byte) string {
	for len(content) > 0 {
		line, rest, _ := bytes.Cut(content, []byte("\n"))
		line = bytes.TrimRight(line, "\r")
		if len(line) == 0 {
			return ""
		}
		const name = "message-id:"
		if len(line) >= len(name) && strings.EqualFold(string(line[:len(name)]), name) {
			value := string(line[len(name):])
			for len(rest) > 0 && (rest[0] == ' ' || rest[0] == '\t') { // folded, RFC 5322, section 2.2.3
				line, rest, _ = bytes.Cut(rest, []byte("\n"))
				value += string(line)
			}
			value = strings.Trim(strings.TrimSpace(value), "<>")
			left, _, _ := strings.Cut(value, "@")
			return left
		}
		content = rest
	}
	return ""
}

// cutPath takes "FROM:<path> PARAMS" apart.
func cutPath(args, keyword string) (path, params string, ok bool) {
	if len(args) < len(keyword) || !strings.EqualFold(args[:len(keyword)], keyword) {
		return "", "", false
	}
	args = strings.TrimLeft(args[len(keyword):], " ")
	if !strings.HasPrefix(args, "<") {
		return "", "", false
	}
	quoted := false
	for i := 1; i < len(args); i++ {
		switch c := args[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case c == '>' && !quoted:
			params = args[i+1:]
			return args[1:i], strings.TrimSpace(params), params == "" || params[0] == ' '
		}
	}
	return "", "", false
}

func isMailbox(s string) bool {
	local, domain, ok := cutLastAt(s)
	return ok && local != "" && domain != "" && len(s) <= 254 && utf8.ValidString(s) && !strings.ContainsFunc(s, func(r rune) bool {
		return r < ' ' || r == 0x7f
	}) && !strings.ContainsAny(domain, " <>@,;\"")
}

func cutLastAt(s string) (local, domain string, ok bool) {
	i := strings.LastIndexByte(s, '@')
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+1:], true
}

func isASCII(s string) bool {
	for i := range len(s) {
		if s[i] >= utf8.RuneSelf {
			return false
		}
	}
	return true
}
