"""What any program needs: errors, files, devices, terminals, processes. Nothing here is specific to images or training."""
