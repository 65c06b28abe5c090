"""The tables of the SQLite store, as migrations.

Decides how rows look. A migration is numbered by its place in the list: append, never edit.
"""

from typing import Final

from broker.store.sql_releases import RELEASES_SCHEMA, SHARED_FACTS

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
    (
        "ALTER TABLE mailbox ADD COLUMN kind TEXT NOT NULL DEFAULT 'ephemeral'",
        "ALTER TABLE mailbox ADD COLUMN held_until_ms INTEGER NOT NULL DEFAULT 0",
        # A parcel is one envelope or one batch of a channel. What a lease changes is here; its bytes are beside it.
        """CREATE TABLE parcel (
            id INTEGER PRIMARY KEY AUTOINCREMENT, mailbox TEXT NOT NULL, sender TEXT NOT NULL, kind TEXT NOT NULL,
            count INTEGER NOT NULL, undone INTEGER NOT NULL, msg_id BLOB NOT NULL, digest BLOB NOT NULL,
            key BLOB NOT NULL, accepted_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL,
            visible_at_ms INTEGER NOT NULL, leased_at_ms INTEGER NOT NULL DEFAULT 0,
            attempt INTEGER NOT NULL DEFAULT 0, lease TEXT, octets INTEGER NOT NULL,
            remaining TEXT NOT NULL DEFAULT '', dead_at_ms INTEGER NOT NULL DEFAULT 0,
            dead_reason TEXT NOT NULL DEFAULT '', last_code TEXT NOT NULL DEFAULT '')""",
        "CREATE TABLE parcel_body (id INTEGER PRIMARY KEY, envelope BLOB NOT NULL)",
        "CREATE INDEX parcel_lane ON parcel (mailbox, sender, id) WHERE dead_at_ms = 0",
        "CREATE INDEX parcel_end ON parcel (expires_at_ms) WHERE dead_at_ms = 0",
        "CREATE INDEX parcel_out ON parcel (mailbox, visible_at_ms, undone) WHERE lease IS NOT NULL",
        "CREATE INDEX parcel_dead ON parcel (mailbox, id) WHERE dead_at_ms > 0",
        "CREATE INDEX parcel_died ON parcel (dead_at_ms) WHERE dead_at_ms > 0",
        "CREATE UNIQUE INDEX parcel_lease ON parcel (lease) WHERE lease IS NOT NULL",
        # What of one sender waits in one mailbox, and how many parcels were ever taken in.
        """CREATE TABLE lane (
            mailbox TEXT NOT NULL, sender TEXT NOT NULL, messages INTEGER NOT NULL, octets INTEGER NOT NULL,
            taken INTEGER NOT NULL, PRIMARY KEY (mailbox, sender)) WITHOUT ROWID""",
        "CREATE INDEX lane_busy ON lane (mailbox, sender) WHERE messages > 0",
        "DELETE FROM load",
        """CREATE TRIGGER parcel_in AFTER INSERT ON parcel BEGIN
            INSERT INTO load VALUES (new.mailbox, new.undone, new.octets)
            ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, octets = octets + excluded.octets;
            INSERT INTO lane VALUES (new.mailbox, new.sender, new.undone, new.octets, 1)
            ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, octets = octets + excluded.octets,
                taken = taken + 1; END""",
        """CREATE TRIGGER parcel_gone AFTER DELETE ON parcel WHEN old.dead_at_ms = 0 BEGIN
            UPDATE load SET messages = messages - old.undone, octets = octets - old.octets
                WHERE mailbox = old.mailbox;
            UPDATE lane SET messages = messages - old.undone, octets = octets - old.octets
                WHERE mailbox = old.mailbox AND sender = old.sender; END""",
        "CREATE TRIGGER parcel_body_gone AFTER DELETE ON parcel BEGIN DELETE FROM parcel_body WHERE id = old.id; END",
        """CREATE TRIGGER parcel_changed AFTER UPDATE OF undone, dead_at_ms ON parcel
            WHEN old.undone <> new.undone OR (old.dead_at_ms = 0) <> (new.dead_at_ms = 0) BEGIN
            UPDATE load SET
                messages = messages + new.undone * (new.dead_at_ms = 0) - old.undone * (old.dead_at_ms = 0),
                octets = octets + new.octets * (new.dead_at_ms = 0) - old.octets * (old.dead_at_ms = 0)
                WHERE mailbox = new.mailbox;
            UPDATE lane SET
                messages = messages + new.undone * (new.dead_at_ms = 0) - old.undone * (old.dead_at_ms = 0),
                octets = octets + new.octets * (new.dead_at_ms = 0) - old.octets * (old.dead_at_ms = 0)
                WHERE mailbox = new.mailbox AND sender = new.sender; END""",
        # Mail of before this step is carried over; its ids were not kept.
        """INSERT INTO parcel (id, mailbox, sender, kind, count, undone, msg_id, digest, key, accepted_at_ms,
                expires_at_ms, visible_at_ms, attempt, octets)
            SELECT id, mailbox, sender, 'envelope', 1, 1, x'', x'', key, accepted_at_ms, expires_at_ms, visible_at_ms,
                attempt, octets FROM message""",
        "INSERT INTO parcel_body SELECT id, envelope FROM message",
        """INSERT INTO lane SELECT mailbox, sender, 0, 0, taken FROM edge WHERE true
            ON CONFLICT DO UPDATE SET taken = excluded.taken""",
        "DROP TABLE message",
        "DROP TABLE edge",
        """CREATE TABLE tombstone (
            number INTEGER PRIMARY KEY AUTOINCREMENT, mailbox TEXT NOT NULL, sender TEXT NOT NULL,
            at_ms INTEGER NOT NULL, statement TEXT NOT NULL)""",
        "CREATE INDEX tombstone_of ON tombstone (mailbox, number)",
        "CREATE INDEX tombstone_at ON tombstone (at_ms)",
        """CREATE TABLE peer_token (
            number INTEGER PRIMARY KEY, sender TEXT NOT NULL, issued_at_s INTEGER NOT NULL,
            expires_at_s INTEGER NOT NULL, token TEXT NOT NULL, UNIQUE (sender, issued_at_s))""",
        "CREATE INDEX peer_token_end ON peer_token (expires_at_s)",
        """CREATE TABLE blob (
            number INTEGER PRIMARY KEY, digest BLOB NOT NULL UNIQUE, mailbox TEXT NOT NULL, sender TEXT NOT NULL,
            octets INTEGER NOT NULL, accepted_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL,
            body BLOB NOT NULL)""",
        "CREATE INDEX blob_load ON blob (mailbox, expires_at_ms, sender, octets)",
        "CREATE INDEX blob_end ON blob (expires_at_ms)",
    ),
    (
        """CREATE TABLE channel (
            channel BLOB PRIMARY KEY, sender TEXT NOT NULL, mailbox TEXT NOT NULL, key BLOB NOT NULL,
            incarnation BLOB NOT NULL, highest INTEGER NOT NULL, chain BLOB NOT NULL, ends BLOB NOT NULL,
            accepted_at_ms INTEGER NOT NULL, until_ms INTEGER NOT NULL)""",
        "CREATE INDEX channel_end ON channel (until_ms)",
        "CREATE TABLE channel_opening (channel BLOB PRIMARY KEY, envelope BLOB NOT NULL)",
    ),
    (
        """CREATE TABLE topic_message (
            id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, sender TEXT NOT NULL, msg_id BLOB NOT NULL,
            digest BLOB NOT NULL, key BLOB NOT NULL, accepted_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL,
            envelope BLOB NOT NULL, UNIQUE (topic, sender, msg_id))""",
        "CREATE INDEX topic_next ON topic_message (topic, id)",
        "CREATE INDEX topic_end ON topic_message (expires_at_ms)",
        """CREATE TABLE topic_reader (
            topic TEXT, subject TEXT, place INTEGER NOT NULL, epoch INTEGER NOT NULL, joined_at_ms INTEGER NOT NULL,
            PRIMARY KEY (topic, subject)) WITHOUT ROWID""",
        "CREATE TABLE reader_state (mailbox TEXT PRIMARY KEY, sealed BLOB NOT NULL)",
    ),
    (
        # When a blob was last used, so that the archive can be cut.
        "ALTER TABLE archive ADD COLUMN used_at_s INTEGER NOT NULL DEFAULT 0",
        "UPDATE archive SET used_at_s = CAST(strftime('%s', 'now') AS INTEGER)",
        "CREATE INDEX archive_used ON archive (used_at_s)",
    ),
    (
        """CREATE TABLE svid (
            serial TEXT PRIMARY KEY, authority TEXT NOT NULL, subject TEXT NOT NULL, issued_at_s INTEGER NOT NULL,
            expires_at_s INTEGER NOT NULL) WITHOUT ROWID""",
        "CREATE INDEX svid_of ON svid (subject, expires_at_s)",
        "CREATE INDEX svid_end ON svid (expires_at_s)",
        "CREATE INDEX agent_fallen ON agent (subject) WHERE state <> 'admitted'",
    ),
    RELEASES_SCHEMA,
    ("CREATE INDEX mailbox_owner ON mailbox (owner)",),
    ("CREATE INDEX channel_of ON channel (sender, mailbox, accepted_at_ms)",),
    (
        "ALTER TABLE topic_reader ADD COLUMN missed INTEGER NOT NULL DEFAULT 0",
        # What of one sender lies in one topic, kept by triggers, as for mailboxes.
        """CREATE TABLE topic_lane (
            topic TEXT, sender TEXT, messages INTEGER NOT NULL, octets INTEGER NOT NULL, PRIMARY KEY (topic, sender))
            WITHOUT ROWID""",
        "INSERT INTO topic_lane SELECT topic, sender, count(*), sum(length(envelope)) FROM topic_message GROUP BY 1, 2",
        """CREATE TRIGGER topic_in AFTER INSERT ON topic_message BEGIN
            INSERT INTO topic_lane VALUES (new.topic, new.sender, 1, length(new.envelope))
            ON CONFLICT DO UPDATE SET messages = messages + 1, octets = octets + excluded.octets; END""",
        """CREATE TRIGGER topic_out AFTER DELETE ON topic_message BEGIN
            UPDATE topic_lane SET messages = messages - 1, octets = octets - length(old.envelope)
                WHERE topic = old.topic AND sender = old.sender;
            DELETE FROM topic_lane WHERE topic = old.topic AND sender = old.sender AND messages = 0; END""",
    ),
    SHARED_FACTS,
    (
        # Tombstones that there was no room for.
        """CREATE TABLE forgotten (
            mailbox TEXT, sender TEXT, stones INTEGER NOT NULL, at_ms INTEGER NOT NULL, PRIMARY KEY (mailbox, sender))
            WITHOUT ROWID""",
    ),
    (
        # A topic holds batches of channels, too. Numbers go on where they were: readers have their places by them.
        "DROP TRIGGER topic_in",
        "DROP TRIGGER topic_out",
        "DROP INDEX topic_next",
        "DROP INDEX topic_end",
        "ALTER TABLE topic_message RENAME TO topic_before",
        """CREATE TABLE topic_message (
            id INTEGER PRIMARY KEY AUTOINCREMENT, topic TEXT NOT NULL, sender TEXT NOT NULL, msg_id BLOB NOT NULL,
            digest BLOB NOT NULL, key BLOB NOT NULL, accepted_at_ms INTEGER NOT NULL, expires_at_ms INTEGER NOT NULL,
            kind TEXT NOT NULL, count INTEGER NOT NULL, envelope BLOB NOT NULL, UNIQUE (topic, sender, msg_id))""",
        """INSERT INTO topic_message SELECT id, topic, sender, msg_id, digest, key, accepted_at_ms, expires_at_ms,
            'envelope', 1, envelope FROM topic_before""",
        "DELETE FROM sqlite_sequence WHERE name = 'topic_message'",
        "INSERT INTO sqlite_sequence SELECT 'topic_message', seq FROM sqlite_sequence WHERE name = 'topic_before'",
        "DROP TABLE topic_before",
        "CREATE INDEX topic_next ON topic_message (topic, id)",
        "CREATE INDEX topic_end ON topic_message (expires_at_ms)",
        """CREATE TRIGGER topic_in AFTER INSERT ON topic_message BEGIN
            INSERT INTO topic_lane VALUES (new.topic, new.sender, new.count, length(new.envelope))
            ON CONFLICT DO UPDATE SET messages = messages + excluded.messages, octets = octets + excluded.octets;
            END""",
        """CREATE TRIGGER topic_out AFTER DELETE ON topic_message BEGIN
            UPDATE topic_lane SET messages = messages - old.count, octets = octets - length(old.envelope)
                WHERE topic = old.topic AND sender = old.sender;
            DELETE FROM topic_lane WHERE topic = old.topic AND sender = old.sender AND messages = 0; END""",
    ),
    (
        # What is kept of an agent, to be found when it goes.
        "CREATE INDEX lane_of ON lane (sender)",
        "CREATE INDEX secret_lease_of ON secret_lease (subject)",
        "CREATE INDEX topic_reader_of ON topic_reader (subject)",
    ),
)
