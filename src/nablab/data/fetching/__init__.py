"""How bytes come to this machine: addresses, packages of registries, folders."""
