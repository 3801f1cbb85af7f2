"""The protocol, generated from proto/rockbed/v1 by `make proto`."""
