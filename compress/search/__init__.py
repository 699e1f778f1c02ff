"""What a candidate costs on the runtime that ships, before anything is trained."""
