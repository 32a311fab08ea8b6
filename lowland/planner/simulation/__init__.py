"""Steps on many devices as discrete events, by simpy: slow devices, failures and checkpoints."""
