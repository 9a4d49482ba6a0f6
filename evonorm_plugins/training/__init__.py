"""What every training of this project needs: options, files, processes, averages, records."""
