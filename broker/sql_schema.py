"""The tables of the SQLite store, as migrations.

Decides how rows look. A migration is numbered by its place in the list: append, never edit.
"""

from typing import Final

MIGRATIONS: Final[tuple[tuple[str, ...], ...]] = (
    (
        "CREATE TABLE nonce (nonce BLOB PRIMARY KEY, expires_at_s INTEGER NOT NULL) WITHOUT ROWID",
        "CREATE INDEX nonce_end ON nonce (expires_at_s)",
        """CREATE TABLE agent (
            subject TEXT PRIMARY KEY, tenant TEXT NOT NULL, jkt TEXT NOT NULL, state TEXT NOT NULL, codes TEXT NOT NULL,
            evidence BLOB NOT NULL, collateral TEXT NOT NULL, generation INTEGER NOT NULL,
            admitted_at_s INTEGER NOT NULL, judged_at_s INTEGER NOT NULL, expires_at_s INTEGER NOT NULL,
            simulated INTEGER NOT NULL, tcb_status TEXT NOT NULL, facts TEXT NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX agent_live ON agent (state, expires_at_s)",
        "CREATE TABLE archive (digest BLOB PRIMARY KEY, blob BLOB NOT NULL)",  # large rows: better off with a rowid
        """CREATE TABLE secret (
            name TEXT NOT NULL, version INTEGER NOT NULL, labels TEXT NOT NULL, created_at_s INTEGER NOT NULL,
            wrapped_key BLOB NOT NULL, ciphertext BLOB NOT NULL, PRIMARY KEY (name, version)) WITHOUT ROWID""",
        """CREATE TABLE mailbox (
            name TEXT PRIMARY KEY, owner TEXT NOT NULL, key BLOB NOT NULL, incarnation BLOB NOT NULL,
            epoch INTEGER NOT NULL, statement TEXT NOT NULL) WITHOUT ROWID""",
        """CREATE TABLE mailbox_key (
            number INTEGER PRIMARY KEY AUTOINCREMENT, name TEXT NOT NULL, key BLOB NOT NULL, incarnation BLOB NOT NULL,
            UNIQUE (name, key))""",
        """CREATE TABLE message (
            id INTEGER PRIMARY KEY AUTOINCREMENT, mailbox TEXT NOT NULL, sender TEXT NOT NULL, key BLOB NOT NULL,
            accepted_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL, visible_at_ms INTEGER NOT NULL,
            attempt INTEGER NOT NULL DEFAULT 0, lease TEXT, octets INTEGER NOT NULL, envelope BLOB NOT NULL)""",
        "CREATE INDEX message_next ON message (mailbox, id)",
        "CREATE UNIQUE INDEX message_lease ON message (lease) WHERE lease IS NOT NULL",
        # What a mailbox holds, kept by triggers, so that no way of removing a message can forget to count.
        """CREATE TABLE load (mailbox TEXT PRIMARY KEY, messages INTEGER NOT NULL, octets INTEGER NOT NULL)
           WITHOUT ROWID""",
        """CREATE TRIGGER message_in AFTER INSERT ON message BEGIN
            INSERT INTO load VALUES (new.mailbox, 1, new.octets)
            ON CONFLICT DO UPDATE SET messages = messages + 1, octets = octets + new.octets; END""",
        """CREATE TRIGGER message_out AFTER DELETE ON message BEGIN
            UPDATE load SET messages = messages - 1, octets = octets - old.octets WHERE mailbox = old.mailbox; END""",
        """CREATE TABLE seen (
            mailbox TEXT NOT NULL, sender TEXT NOT NULL, msg_id BLOB NOT NULL, digest BLOB NOT NULL,
            until_ms INTEGER NOT NULL, PRIMARY KEY (mailbox, sender, msg_id)) WITHOUT ROWID""",
        "CREATE INDEX seen_end ON seen (until_ms)",
        """CREATE TABLE edge (mailbox TEXT, sender TEXT, taken INTEGER NOT NULL, PRIMARY KEY (mailbox, sender))
           WITHOUT ROWID""",
        """CREATE TABLE log_entry (
            idx INTEGER PRIMARY KEY, at_ms INTEGER NOT NULL, kind TEXT NOT NULL, subject TEXT NOT NULL,
            entry BLOB NOT NULL)""",
        "CREATE INDEX log_kind ON log_entry (kind, idx)",
        """CREATE TABLE log_node (level INTEGER, idx INTEGER, hash BLOB NOT NULL, PRIMARY KEY (level, idx))
           WITHOUT ROWID""",
        "CREATE TABLE log_head (one INTEGER PRIMARY KEY CHECK (one = 1), size INTEGER NOT NULL, note TEXT NOT NULL)",
        "CREATE TABLE mark (name TEXT PRIMARY KEY, value TEXT NOT NULL, mac BLOB NOT NULL) WITHOUT ROWID",
    ),
)
