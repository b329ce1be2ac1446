"""The route /users/{id} of examples/12_projects/01_web_framework.c by FastAPI: uvicorn web_fastapi:app"""
from fastapi import FastAPI, HTTPException
from pydantic import BaseModel


class User(BaseModel):
    id: int
    name: str
    email: str
    age: int


USERS = {user.id: user for user in (User(id=1, name="Ada", email="ada@example.org", age=36),
                                    User(id=2, name="Grace", email="grace@example.org", age=85),
                                    User(id=3, name="Edsger", email="edsger@example.org", age=72))}
app = FastAPI()


@app.get("/users/{id}")
async def get_user(id: int) -> User:
    if id not in USERS:
        raise HTTPException(404)
    return USERS[id]
