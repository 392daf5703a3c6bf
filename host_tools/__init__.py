"""Edge Kit on the workstation: export, calibrate, measure, pack and sign."""
