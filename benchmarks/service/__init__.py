"""The service under load, faults and hostile requests."""
