"""The published language between broker and clients: bodies, envelopes, proofs, receipts.

Imports nothing of the broker, no web framework, no SQL and no clock, so that an agent can ship it alone.
"""
