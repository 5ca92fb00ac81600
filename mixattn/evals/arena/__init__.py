"""Rankings of models from pairwise human votes, and the platform that collects the votes (Chatbot Arena)."""
