-- Every object of the extension with its privileges, so that a new one, or a
-- new grant, shows here.  What is not listed is the owner's alone.
\set ECHO none
\i sql/setup.inc
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_shop_reader, regress_shop_writer, regress_shop_admin, regress_shop_other;
RESET client_min_messages;
\set ECHO all
CREATE ROLE regress_shop_reader;
CREATE ROLE regress_shop_writer;
CREATE ROLE regress_shop_admin;
CREATE ROLE regress_shop_other;

-- The members of the extension, and the objects that are part of those
CREATE TEMP VIEW object AS
    WITH RECURSIVE member AS (
        SELECT classid, objid FROM pg_depend
         WHERE refclassid = 'pg_extension'::regclass AND deptype = 'e'
           AND refobjid = (SELECT oid FROM pg_extension WHERE extname = 'shop')
        UNION
        SELECT d.classid, d.objid FROM member m
          JOIN pg_depend d ON d.refclassid = m.classid AND d.refobjid = m.objid AND d.deptype IN ('a', 'i') AND d.objsubid = 0
         WHERE d.classid IN ('pg_class'::regclass, 'pg_type'::regclass))
    SELECT classid, objid, (pg_identify_object(classid, objid, 0)).type, (pg_identify_object(classid, objid, 0)).identity,
           coalesce(n.nspowner, c.relowner, p.proowner, t.typowner, e.evtowner) AS owner,
           coalesce(n.nspacl, c.relacl, p.proacl, t.typacl,
                    CASE WHEN n.oid IS NOT NULL THEN acldefault('n', n.nspowner)
                         WHEN c.relkind = 'S' THEN acldefault('s', c.relowner)
                         WHEN c.relkind IN ('r', 'v', 'm') THEN acldefault('r', c.relowner)
                         WHEN p.oid IS NOT NULL THEN acldefault('f', p.proowner)
                         WHEN t.oid IS NOT NULL THEN acldefault('T', t.typowner) END) AS acl
      FROM member m
      LEFT JOIN pg_namespace n ON m.classid = 'pg_namespace'::regclass AND n.oid = m.objid
      LEFT JOIN pg_class c ON m.classid = 'pg_class'::regclass AND c.oid = m.objid
      LEFT JOIN pg_proc p ON m.classid = 'pg_proc'::regclass AND p.oid = m.objid
      LEFT JOIN pg_type t ON m.classid = 'pg_type'::regclass AND t.oid = m.objid
      LEFT JOIN pg_event_trigger e ON m.classid = 'pg_event_trigger'::regclass AND e.oid = m.objid
     WHERE coalesce(c.relkind, 'r') IN ('r', 'v', 'm', 'S');
-- Everybody but the owner, with what he has
CREATE TEMP VIEW privilege AS
    SELECT o.type, o.identity, string_agg(grantee || '=' || privileges, ', ' ORDER BY n) AS privileges
      FROM object o
      LEFT JOIN LATERAL (
        SELECT CASE a.grantee WHEN 0 THEN 'PUBLIC' ELSE replace(a.grantee::regrole::text, 'regress_shop_', '') END AS grantee,
               array_position(ARRAY['', 'regress_shop_reader', 'regress_shop_writer', 'regress_shop_admin'], CASE a.grantee WHEN 0 THEN '' ELSE a.grantee::regrole::text END) AS n,
               string_agg(a.privilege_type || CASE WHEN a.is_grantable THEN ' (grantable)' ELSE '' END, ' ' ORDER BY a.privilege_type) AS privileges
          FROM aclexplode(o.acl) a
         WHERE a.grantee <> o.owner
         GROUP BY a.grantee) g ON true
     GROUP BY o.type, o.identity;

--
-- As installed
--
\pset format unaligned
\pset fieldsep ' | '
\pset tuples_only on
SELECT * FROM privilege ORDER BY type, identity COLLATE "C";
-- all belong to one owner
SELECT count(DISTINCT owner) FROM object WHERE owner IS NOT NULL;
-- no privilege is on a column
SELECT attrelid::regclass, attname FROM pg_attribute WHERE attacl IS NOT NULL AND attrelid IN (SELECT objid FROM object);

--
-- What grant_access() adds, each role kind to what is below it
--
SELECT shop.grant_access('regress_shop_reader', 'read'), shop.grant_access('regress_shop_writer', 'write'),
       shop.grant_access('regress_shop_admin', 'admin');
SELECT * FROM privilege WHERE privileges <> 'PUBLIC=USAGE' ORDER BY type, identity COLLATE "C";

--
-- Default privileges are not for these objects
--
DROP OWNED BY regress_shop_reader, regress_shop_writer, regress_shop_admin;
CREATE TEMP TABLE installed AS SELECT * FROM privilege;
SET client_min_messages = warning;
BEGIN;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO regress_shop_other, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_shop_other WITH GRANT OPTION;
ALTER DEFAULT PRIVILEGES GRANT SELECT ON TABLES TO PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_shop_other, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO regress_shop_other;
DROP EXTENSION shop;
CREATE EXTENSION shop;
SELECT p.* FROM privilege p FULL JOIN installed i USING (type, identity) WHERE p.privileges IS DISTINCT FROM i.privileges ORDER BY 1, 2;
SELECT count(*) > 100 AS all_there FROM privilege;
ROLLBACK;
RESET client_min_messages;
DROP OWNED BY regress_shop_reader, regress_shop_writer, regress_shop_admin, regress_shop_other;
DROP ROLE regress_shop_reader, regress_shop_writer, regress_shop_admin, regress_shop_other;
