"""HTTP routes, thin: they check who asks, call one function, and give its result a form."""
