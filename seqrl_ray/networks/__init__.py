"""Networks: torch modules that map observations to outputs; they know no batch object and no discount."""
