"""stub until the page lands"""
from edge.http_answer import HttpAnswer


def answer() -> HttpAnswer:
    return HttpAnswer(status=200, body=b"")
