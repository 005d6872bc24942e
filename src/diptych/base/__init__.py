"""What any program needs: errors, files, devices, terminals, processes. It knows no noun of the other rooms."""
