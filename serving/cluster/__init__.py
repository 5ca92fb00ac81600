"""One front door before many engines. So far `ingress`: what decides and keeps count, without transports."""
