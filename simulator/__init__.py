"""A pretend Intel platform: its own root of trust, certificates, quotes, collateral and clock, all in software.

Nothing it makes can pass for the real thing: every machine makes its own root, the default trust roots are Intel's
alone, its certificates start in the year 2000 with serial numbers that spell `SIM`, and its trust domains are named
`cloister-sim`.
"""
