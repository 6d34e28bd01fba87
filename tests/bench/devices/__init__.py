"""What goes through devices, and how fast: pipes, disks, networks, file copies."""
