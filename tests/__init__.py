# Makes this folder win over a package of the same name that torch-fidelity installs.
