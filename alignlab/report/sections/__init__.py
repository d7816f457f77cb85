"""The parts of a report, each made of the result files it knows."""
