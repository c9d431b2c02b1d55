-- The roles of deploy/roles.sql, before the first migration. Grants on tables are given in advance here, and so on all of
-- them, to need no second step.
CREATE ROLE collections_migrator LOGIN PASSWORD 'development';
CREATE ROLE collections LOGIN PASSWORD 'development';
GRANT CREATE ON SCHEMA public TO collections_migrator;
ALTER DEFAULT PRIVILEGES FOR ROLE collections_migrator GRANT EXECUTE ON FUNCTIONS TO collections;
ALTER DEFAULT PRIVILEGES FOR ROLE collections_migrator GRANT SELECT ON TABLES TO collections;
