"""The one impure corner of `attestation`: collateral over HTTPS, kept on disk. Nothing in the pure core imports it."""
