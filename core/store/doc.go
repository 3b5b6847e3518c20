// Package store keeps everything in SQLite or PostgreSQL and is the only door to SQL. Record, Claim and
// Settle ride in group commits: whoever arrives while a transaction is being synced rides in the next
// one, and line says when that leaves. The statements are the same for both databases; what differs is
// behind the interface backend.
//
// Times are Unix microseconds of the database's clock, ids are 16 bytes.
package store
