"""What readers with a token see: nodes, workloads, usage, findings."""

from fastapi import APIRouter

from keyturn_verifier.service import Service


def router(service: Service) -> APIRouter:
    """The routes."""
    return APIRouter()
