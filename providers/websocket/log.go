package websocket

import (
	"context"
	"log/slog"

	"github.com/centrifugal/centrifuge"

	"github.com/carillon-notify/carillon/providers/pace"
)

// loggedFields are the fields of a centrifuge entry that hold neither content nor a token nor an
// address. A channel and a user name a recipient; "data", "req", "reply" and "command" are content.
var loggedFields = [...]string{"client", "transport", "code", "reason", "duration", "limit", "timeout", "method", "shard", "broker_name"}

// clientFields mark an entry whose error text may quote what a client sent.
var clientFields = [...]string{"data", "req", "reply", "command", "push"}

var slogLevels = map[centrifuge.LogLevel]slog.Level{
	centrifuge.LogLevelTrace: slog.LevelDebug - 4,
	centrifuge.LogLevelDebug: slog.LevelDebug,
	// What centrifuge informs about is clients' mistakes, of which a client can make any number.
	centrifuge.LogLevelInfo:  slog.LevelDebug,
	centrifuge.LogLevelWarn:  slog.LevelWarn,
	centrifuge.LogLevelError: slog.LevelError,
}

// logLevel is the least level centrifuge builds entries for: never its trace, which is all traffic.
func logLevel(log *slog.Logger) centrifuge.LogLevel {
	if log.Enabled(context.Background(), slog.LevelDebug) {
		return centrifuge.LogLevelDebug
	}
	return centrifuge.LogLevelWarn
}

// logHandler writes centrifuge's entries to log, with only those fields that are safe at any level. Of what is
// repeated one a minute is written above debug, with the count of the others.
func logHandler(log *slog.Logger) centrifuge.LogHandler {
	var again pace.Pace // one is made for each client and try while Redis is away
	return func(e centrifuge.LogEntry) {
		level, skipped := slogLevels[e.Level], 0
		if level >= slog.LevelWarn {
			var now bool
			if skipped, now = again.Say(e.Message); !now {
				level = slog.LevelDebug
			}
		}
		if !log.Enabled(context.Background(), level) {
			return
		}
		attrs := make([]slog.Attr, 0, 4)
		for _, name := range loggedFields {
			if v, ok := e.Fields[name]; ok {
				attrs = append(attrs, slog.Any(name, v))
			}
		}
		if text, ok := e.Fields["error"].(string); ok && level >= slog.LevelWarn && !quotesClient(e.Fields) {
			attrs = append(attrs, slog.String("error", text))
		}
		if skipped > 0 {
			attrs = append(attrs, slog.Int("repeated", skipped))
		}
		log.LogAttrs(context.Background(), level, "centrifuge: "+e.Message, attrs...)
	}
}

func quotesClient(fields map[string]any) bool {
	for _, name := range clientFields {
		if _, ok := fields[name]; ok {
			return true
		}
	}
	return false
}
