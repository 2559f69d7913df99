"""What every room uses: errors, names, files, paths, the machine, limits of time."""
