"""`python -m gateway_sidecar`."""

from gateway_sidecar.cli import main

if __name__ == "__main__":
    main()
