// Package queue is the only door to asynq: it carries wakes through Redis, bounded by a window, and
// hands them to a handler. Nothing in it is the truth: a wake lost, late or doubled does no harm but
// delay, since every batch has its alarm clock in the store. It keeps ids only, no personal data.
package queue
