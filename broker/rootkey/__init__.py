"""The key from which the broker's other keys come, and the ways to keep it: key file, passphrase, TPM 2.0, shares."""
