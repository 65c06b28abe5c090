"""Documents, and the file that writes the generated one."""
