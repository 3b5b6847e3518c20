// Package core is Carillon's domain and its rules: what was asked (Notification), its way to one
// endpoint (Delivery), what travels together (Batch), what follows from a provider's answer
// (Delivery.Apply). Everything here is a pure function of its arguments: no I/O, no clock, no log.
// The time is always handed in, and it is the database's.
package core
