"""Mailboxes, channels, topics, blobs and labels: all that takes mail in, keeps it or hands it out. No transport."""
