"""Reading the machine: fingerprint, pressure, temperature, memory."""
