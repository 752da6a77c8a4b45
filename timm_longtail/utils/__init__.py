"""What every part of the package may use: errors, files, random numbers, processes."""
