"""The KBS protocol of Confidential Containers, for `tdx`: attest with a cookie, fetch with a bearer token, read a JWE.

Its cookies and bearer tokens are weaker by that protocol's design, so nothing issued here works at any other door and
nothing issued there works here: nonces have a purpose, tokens an issuer and keys of their own.
"""
