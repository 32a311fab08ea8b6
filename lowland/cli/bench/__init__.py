"""``lowland bench``: measure step times, memory and traffic on this machine."""
