// Package store keeps everything in SQLite or PostgreSQL and is the only door to SQL. Record, Claim and
// Settle ride in group commits: whoever arrives while a transaction is being synced rides in the next
// one, and line says when that leaves. The statements are the same for both databases; what differs is
// behind the interface backend.
//
// The four rules of docs/architecture.md are kept here, by these statements:
//
//  1. Every write by relay or worker is conditional on the fence. claimAll and settleAll name the one that their caller
//     has; Due, and take for Lapsed and Strays, raise it of batches that they read and locked in the same transaction.
//     What moves an alarm clock alone (Unclaimed, Requeue, Unqueue, Strays) gives nobody a batch.
//  2. The round is committed before the provider is called: claimAll inserts it, and Claim returns after the commit.
//     What is left of it when its lease is over, Lapsed finds. Every settlement finishes a round (finishRounds), so that a
//     batch whose last one is finished was not sent since (noteUnsent): it does not count as unknown.
//  3. What is not terminal has a finite run_at: core.Batch.Schedule gives it one, and whoever takes a batch the end of
//     its time (Due, claimAll, take). Overdue asks for what is behind it, whatever its state.
//  4. Terminal is final: what writes a delivery's state names the one that it leaves: pending, or sent for a receipt;
//     applyEarly changes what its own transaction wrote. A pending delivery's batch is open: settleAll and bringForward
//     move it to one that is, and closeBatches closes none that has one.
//
// The examination of both databases in storetest asserts them: "a stale fence changes nothing" and "a stale wake claims
// nothing" (1); "a notification from accept to sent", "a lapsed lease is taken over" and "strays whose relay dies" (2);
// "what nobody has claimed is due", "what a wiped queue held is due" and "strays" (3); "terminal is final" (4); "model",
// all of them for random histories.
//
// Times are Unix microseconds of the database's clock, ids are 16 bytes.
package store
