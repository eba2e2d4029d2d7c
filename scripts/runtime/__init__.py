"""How a server is run: started, waited for, watched, stopped. A runtime knows no backend; a backend knows no runtime."""
