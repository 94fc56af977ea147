"""`make doctor`: can this machine, this checkout and its sources do what params.yaml says?"""
