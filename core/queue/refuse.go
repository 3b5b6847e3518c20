package queue

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/redis/go-redis/v9"
)

const (
	cancelChannel = "asynq:cancel" // which each of asynq's servers subscribes to
	permitKey     = "asynq:{carillon}:permit"
	permitScript  = "return redis.call('EXISTS', KEYS[1])"
)

// permits asks for what a server of asynq and the doorbell need, each once and with no effect. Without them a process
// would be up and deliver nothing, or only until Redis is restarted: then scripts have to be loaded anew.
func (q *Queue) permits(ctx context.Context) error {
	script := redis.NewScript(permitScript)
	if err := script.Eval(ctx, q.client, []string{permitKey}).Err(); err != nil {
		return fmt.Errorf("run a script: %w", err)
	}
	if err := script.EvalSha(ctx, q.client, []string{permitKey}).Err(); err != nil {
		return fmt.Errorf("run a script again: %w", err)
	}
	if err := q.client.Publish(ctx, channel, "").Err(); err != nil {
		return fmt.Errorf("publish to %s: %w", channel, err)
	}
	sub := q.client.Subscribe(ctx, channel, cancelChannel)
	defer sub.Close() //nolint:errcheck // it has told what was asked
	if _, err := sub.Receive(ctx); err != nil {
		return fmt.Errorf("subscribe to %s and %s: %w", channel, cancelChannel, err)
	}
	return nil
}

// remedy adds to an error of an opening what to do about it, where Redis's words do not say.
func (q *Queue) remedy(err error) error {
	if err == nil || q.embedded != nil {
		return err
	}
	said := err.Error()
	for _, r := range remedies {
		if r.scheme != "" && !strings.HasPrefix(q.url, r.scheme+"://") || !strings.Contains(said, r.says) {
			continue
		}
		return fmt.Errorf("%w; %s", err, r.what)
	}
	return err
}

// remedies are what to do, by what Redis or the client says; the first that fits. No scheme is any.
var remedies = []struct{ scheme, says, what string }{
	{"redis-sentinel", "unreachable: NOAUTH", "set sentinel_password= in the URL"},
	{"redis-sentinel", "unreachable: WRONGPASS", "correct sentinel_password= in the URL"},
	{"redis-sentinel", "redis: nil", "the Sentinels watch no master of that name: correct master= in the URL"},
	{"redis-sentinel", "unknown command 'sentinel'", "a Redis answers there and no Sentinel: name the Sentinels (their port is 26379 by default), or write redis://"},
	{"", "WRONGPASS", "correct the user or the password in the URL, in which a character such as @ : / ? # % is written as %40 %3A %2F %3F %23 %25"},
	{"", "NOAUTH", "write the password into the URL, redis://user:password@host, or redis://:password@host for the default user"},
	{"", "NOPERM", `give the URL's user the permissions that docs/operations.md lists under "Redis", "A user of its own"`},
	{"", "MOVED ", "this is one node of a Redis Cluster: write redis-cluster://"},
	{"redis-cluster", "cluster support disabled", "this is no Redis Cluster: write redis://, or rediss:// for TLS"},
	{"", "READONLY", "this is a replica: have the URL lead to the primary, or write redis-sentinel://"},
	{"", "unknown command 'eval'", "a Sentinel answers there: write redis-sentinel://host:26379?master=NAME"},
	{"", "DB index is out of range", "correct the database's number at the end of the URL"},
	{"", "certificate signed by unknown authority", "name the authority's file in the URL: ca_file=/path/ca.pem"},
	{"", "certificate required", "name our own in the URL, cert_file=/path/client.pem&key_file=/path/client.key, or set the server's tls-auth-clients to no"},
	{"", "OOM ", "free memory there, or raise its maxmemory"},
	{"", "LOADING", "start again when it has loaded its data"},
	{"redis", ": EOF", "the server closes the connection: if it speaks TLS, write rediss:// (tls=true for Sentinel and Cluster); else it is no Redis"},
	{"rediss", "deadline exceeded", "if the server speaks no TLS, write redis://"},
}

// errOneDatabase says of a Cluster's URL what the gateway would be refused with, again and again.
var errOneDatabase = errors.New("a Redis Cluster has one database: leave the number at the end of redis-cluster:// out")
