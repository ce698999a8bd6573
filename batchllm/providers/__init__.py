"""Whatever answers: services, fakes and the local model, one file each, found by name in `wire.registry`."""
