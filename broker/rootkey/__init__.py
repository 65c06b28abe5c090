"""The key from which the broker's other keys come, and the ways to keep it: a key file, a passphrase."""
