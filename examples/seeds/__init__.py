"""The example programs of the systems before Rockbed, in its own form. Tests derive by hand what they print."""
