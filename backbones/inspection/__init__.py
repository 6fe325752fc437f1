"""Reading a finished network: what its parts cost, and where its mixers look. Import the module that you need."""
