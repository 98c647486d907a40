"""Models: functions and scikit-learn style estimators on tables. No actor system in here."""
