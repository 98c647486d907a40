"""A campaign in virtual time: models of providers, runs, forecasts."""
