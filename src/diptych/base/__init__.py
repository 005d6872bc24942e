"""What any program needs: errors, files, devices, terminals, processes. Nothing specific to images or training."""
