"""What runs on a device to set it up: Python 3.8, its own library, one file (see `bundled`).

No syntax or function that came after Python 3.8, so that JetPack 5 gets an answer too. Every step
first looks whether its work is done, and writes so that a kill or a power cut leaves the old or
the new: whoever runs it again ends in the same place.
"""
