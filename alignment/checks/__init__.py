"""What `make doctor` looks at, one file each: parameters, and what was learned before, in; findings out."""
