-- Remote endpoints (http, https, kafka): what may be said of one, by whom, and who sees what of it.
-- Nothing is sent: there are no workers here.
\set ECHO none
\i sql/setup.inc
SET client_min_messages = warning;
DROP ROLE IF EXISTS regress_shop_remote_owner, regress_shop_remote_reader, regress_shop_remote_writer,
    regress_shop_remote_admin, regress_shop_remote_files, regress_shop_remote_noinherit;
RESET client_min_messages;
\set ECHO all
SET shop.test_clock = '2026-11-20 12:00:00+00';
-- How create_endpoint() answers; takes it back
CREATE FUNCTION public.attempt(url text, options text DEFAULT '{}', secret text DEFAULT NULL) RETURNS text
    LANGUAGE sql AS $$
    SELECT CASE code WHEN '00000' THEN 'ok' ELSE concat_ws(' ', code, message, detail) END
      FROM public.refusal(format('SELECT shop.create_endpoint(''e'', %L, options => %L, secret => %L)', url, options, secret)) $$;
\a
--
-- Numbers: whole, from 1 to a limit, and nothing that only looks like one
--
SELECT key, attempt('kafka://broker/topic', format('{%s: 1}', to_json(key))) AS one,
       attempt('kafka://broker/topic', format('{%s: %s}', to_json(key), max)) AS most,
       attempt('kafka://broker/topic', format('{%s: %s}', to_json(key), max + 1)) AS too_many
  FROM (VALUES ('in_flight', 10000), ('batch', 1000), ('timeout', 3600000), ('backoff', 86400000), ('max_backoff', 86400000),
               ('max_attempts', 1000)) v(key, max);
SELECT value, attempt('https://hooks.example.com/', format('{"in_flight": %s}', value)) AS in_flight,
       attempt('https://hooks.example.com/', format('{"batch": %s}', value)) = 'ok' AS batch_is_ok
  FROM unnest(ARRAY['16', '256', '16.0', '1.6e1', '160e-1', '0', '-0', '0.0', '-1', '-16', '1.5', '0.999999999999999999999', '1e-400',
                    '2147483647', '2147483648', '4294967297', '9223372036854775807', '9223372036854775808', '18446744073709551617',
                    '1e400', '-1e400', 'null', 'true', '"16"', '""', '"NaN"', '"Infinity"', '[]', '[16]', '{}', '{"in_flight": 16}']) value;
-- What is no number in JSON does not come that far
SELECT value, left(attempt('https://hooks.example.com/', format('{"in_flight": %s}', value)), 5) AS in_flight
  FROM unnest('{NaN,Infinity,-Infinity,0x10,+16,016,1_6,16.}'::text[]) value;
--
-- Keys: known ones only, as they are written; the last of two counts
--
SELECT options, attempt('https://hooks.example.com/', options) FROM (VALUES
    ('{}'), ('[]'), ('null'), ('"batch"'), ('16'), ('[{"batch": 1}]'), ('{"Batch": 1}'), ('{"batch ": 1}'), ('{"": 1}'), ('{"inflight": 1}'),
    ('{"secret": "x"}'), ('{"ca_path": "/x"}'), ('{"header": {}}'), ('{"proxy": "http://x/"}'), ('{"verify": false}'), ('{"a\"b": 1}'),
    ('{"batch": 0, "batch": 1}'), ('{"from_start": true}'), ('{"from_start": "true"}'), ('{"from_start": null}')
) v(options);
SELECT attempt('https://hooks.example.com/', NULL);
--
-- headers: an object of strings, as HTTP has them
--
SELECT headers, attempt('https://hooks.example.com/', format('{"headers": %s}', headers)) FROM (VALUES
    ('{}'), ('{"authorization": "Bearer abc.def-ghi_jkl="}'), ('{"X-Empty": ""}'), ('{"x-a": "1", "x-b": "2", "Accept": "*/*"}'),
    ('{"x-all": "!\"#$%&''()*+,-./:;<=>?@[\\]^_`{|}~"}'), ('{"x-utf8": "Zoé ☃"}'), ('{"!#$%&''*+-.^_`|~09azAZ": "x"}'), ('{"user-agent": "me"}'),
    ('{"x-null": "null"}'),
    -- a line that ends would be two headers
    ('{"x-a": "1\r\nx-b: 2"}'), ('{"x-a": "1\r"}'), ('{"x-a": "\n"}'), ('{"x-a": "\nx"}'), ('{"x-a\r\nx-b": "1"}'), ('{"x-a: 1\nx-b": "1"}'),
    ('{"x-a": "\u0001"}'), ('{"x-a": "\u001b[0m"}'), ('{"x-a": "\u007f"}'),
    -- names
    ('{"": "x"}'), ('{" ": "x"}'), ('{"x a": "x"}'), ('{" x-a": "x"}'), ('{"x-a ": "x"}'), ('{"x-a:": "x"}'), ('{":path": "/"}'), ('{"x-é": "x"}'), ('{"x(a)": "x"}'),
    ('{"x;": "x"}'), ('{"\"x\"": "x"}'), ('{"x\ty": "x"}'),
    -- not an object of strings
    ('{"x-a": 1}'), ('{"x-a": true}'), ('{"x-a": null}'), ('{"x-a": []}'), ('{"x-a": ["x"]}'), ('{"x-a": {}}'), ('{"x-a": {"x": "x"}}'), ('{"x-a": "x", "x-b": 2}'),
    ('[]'), ('["x-a"]'), ('[{"x-a": "x"}]'), ('"x-a: x"'), ('null'), ('true'), ('1')
) v(headers);
-- those that say what is sent, and how, whatever their case
SELECT name, attempt('https://hooks.example.com/', format('{"headers": {%s: "x"}}', to_json(name)))
  FROM unnest('{Content-Type,CONTENT-LENGTH,content-encoding,Transfer-Encoding,Host,Connection,Expect,Upgrade,
                webhook-id,Webhook-Timestamp,WEBHOOK-SIGNATURE,TraceParent}'::text[]) name;
-- up to 100 bytes of name and 4000 of value
SELECT n, attempt('https://hooks.example.com/', format('{"headers": {"%s": "x"}}', repeat('n', n))) AS name FROM unnest('{100,101}'::int[]) n;
SELECT n, attempt('https://hooks.example.com/', format('{"headers": {"x-a": "%s"}}', repeat('v', n))) AS value FROM unnest('{4000,4001}'::int[]) n;
--
-- ca_file: a name
--
SELECT left(file, 20), attempt('https://hooks.example.com/', format('{"ca_file": %s}', file)) FROM (VALUES
    ('"/etc/ssl/own.pem"'), ('"own.pem"'), ('"/etc/ssl/Zoé und ich.pem"'), (to_json(repeat('x', 1000))::text),
    ('""'), (to_json(repeat('x', 1001))::text), ('null'), ('true'), ('1'), ('[]'), ('["/etc/ssl/own.pem"]'), ('{}')
) v(file);
--
-- kafka: an object of strings, numbers and booleans
--
SELECT settings, attempt('kafka://broker/topic', format('{"kafka": %s}', settings)) FROM (VALUES
    ('{}'), ('{"linger.ms": 5}'), ('{"linger.ms": "5"}'), ('{"socket.keepalive.enable": true}'), ('{"queue.buffering.max.ms": 0.5}'), ('{"client.id": ""}'),
    ('{"security.protocol": "sasl_ssl", "sasl.mechanisms": "SCRAM-SHA-256", "sasl.username": "shop", "sasl.password": "p\"a\\s\ns"}'),
    ('{"linger.ms": null}'), ('{"linger.ms": 5, "client.id": null}'), ('{"linger.ms": []}'), ('{"linger.ms": [5]}'), ('{"linger.ms": {}}'), ('{"linger": {"ms": 5}}'),
    ('[]'), ('["linger.ms"]'), ('[{"linger.ms": 5}]'), ('"linger.ms=5"'), ('null'), ('true'), ('5'),
    -- what it has no setting for is for the program to say
    ('{"no.such.setting": "x"}')
) v(settings);
-- The brokers are those of the url, whose hosts the role may name
SELECT settings, left(attempt('kafka://broker/topic', format('{"kafka": %s}', settings)), 5)
  FROM (VALUES ('{"bootstrap.servers": "elsewhere:9092"}'), ('{"metadata.broker.list": "elsewhere:9092"}')) v(settings);
--
-- secret: whsec_ and 24 to 64 bytes in base64, or two of them
--
CREATE FUNCTION public.secret_of(bytes integer) RETURNS text
    LANGUAGE sql AS $$ SELECT 'whsec_' || translate(encode(convert_to(repeat('s', bytes), 'UTF8'), 'base64'), E'\n', '') $$;
SELECT bytes, attempt('https://hooks.example.com/', secret => secret_of(bytes)) AS https,
       attempt('http://hooks.example.com/', secret => secret_of(bytes)) = 'ok' AS http_is_ok,
       attempt('function:shop.receive_event', secret => secret_of(bytes)) AS function
  FROM unnest('{0,1,23,24,25,26,32,63,64,65,1000}'::integer[]) bytes;
-- every byte there is
SELECT attempt('https://hooks.example.com/', secret => 'whsec_//79/Pv6+fj39vX08/Lx8O/u7ezr6uno'),
       attempt('https://hooks.example.com/', secret => 'whsec_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA');
SELECT name, attempt('https://hooks.example.com/', secret => secret) AS https, attempt('function:shop.receive_event', secret => secret) AS function
  FROM (VALUES
    ('none', NULL),
    ('two', secret_of(24) || ' ' || secret_of(64)),
    ('three', secret_of(24) || ' ' || secret_of(32) || ' ' || secret_of(64)),
    ('two, the first too short', secret_of(23) || ' ' || secret_of(24)),
    ('two, the second too long', secret_of(24) || ' ' || secret_of(65)),
    ('two, one without prefix', secret_of(24) || ' ' || substr(secret_of(24), 7)),
    ('two in one', secret_of(24) || secret_of(24)),
    ('two and a comma', secret_of(24) || ',' || secret_of(24)),
    ('two and a tab', secret_of(24) || E'\t' || secret_of(24)),
    ('empty', ''),
    ('a space', ' '),
    ('a word', 'hush'),
    ('prefix only', 'whsec_'),
    ('no prefix', substr(secret_of(24), 7)),
    ('another prefix', 'whsk_' || substr(secret_of(24), 7)),
    ('a key to verify with', 'whpk_' || substr(secret_of(24), 7)),
    ('capital prefix', 'WHSEC_' || substr(secret_of(24), 7)),
    ('prefix twice', 'whsec_' || secret_of(24)),
    ('not base64', 'whsec_' || repeat('?', 32)),
    ('base64 for URLs', 'whsec_' || repeat('-_-_', 8)),
    ('no padding', rtrim(secret_of(25), '=')),
    ('padding in between', 'whsec_YWI=' || substr(secret_of(24), 7)),
    ('padding only', 'whsec_' || repeat('=', 32)),
    ('not ASCII', 'whsec_' || repeat('é', 16)),
    ('a line break', overlay(secret_of(24) PLACING E'\n' FROM 12 FOR 0)),
    ('a line break behind', secret_of(24) || E'\n')) v(name, secret);
--
-- url
--
SELECT to_json(url) AS url, attempt(url) FROM (VALUES
    ('http://hooks.example.com'), ('http://hooks.example.com/'), ('https://hooks.example.com/in?a=1&b=%20#x'), ('https://hooks.example.com:8443/in'),
    ('http://127.0.0.1/'), ('http://[::1]/'), ('http://[2001:db8::1]:8080/in'), ('https://HOOKS.Example.COM/'), ('https://hooks.example.com./'), ('http://localhost/'),
    ('https://xn--exmple-cua.com/'), ('https://hooks.example.com:1/'), ('https://hooks.example.com:65535/'),
    -- a user, a password, or both
    ('https://user:password@hooks.example.com/'), ('https://user@hooks.example.com/'), ('https://:password@hooks.example.com/'), ('https://hooks.example.com\@elsewhere.com/'),
    ('https://user:p%40ssword@hooks.example.com:8443/in'),
    -- no host
    ('http://'), ('https://'), ('http:///'), ('https://:8443/'), ('http://?a=1'), ('http://#x'), ('http://[]/'),
    -- no url
    ('http://hooks example.com/'), ('http://hooks.example.com/a b'), ('http://hooks.example.com/ '), (' http://hooks.example.com/'), (E'http://hooks.example.com/\n'),
    (E'http://hooks.example.com/\r\nx-a: 1'), (E'http://hooks.example.com\t/'), ('http://[::1/'), ('http://[::g]/'), ('http://hooks.example.com:port/'),
    ('http://hooks.example.com:65536/'), ('http://hooks.example.com:-1/'), ('http://a,b/'), ('http://*/'), ('http://hooks.example.com%00/'),
    -- another scheme
    ('http:hooks.example.com'), ('http:/hooks.example.com'), ('http:\\hooks.example.com'), ('http'), ('//hooks.example.com/'), ('hooks.example.com'),
    ('HTTP://hooks.example.com/'), ('Https://hooks.example.com/'), ('KAFKA://broker/topic'), ('Function:shop.receive_event'), ('httpx://hooks.example.com/'),
    ('ftp://hooks.example.com/'), ('file:///etc/passwd'), ('gopher://hooks.example.com/'), ('unix:///run/x'), ('ws://hooks.example.com/'),
    ('kafka:broker/topic'), ('kafkas://broker/topic'), (''), (' ')
) v(url);
SELECT attempt(NULL);
SELECT n, attempt('https://hooks.example.com/' || repeat('x', n - 26)) AS https,
       attempt('kafka://broker' || repeat(',broker', (n - 17) / 7) || repeat('x', (n - 17) % 7) || '/to') AS kafka
  FROM unnest('{2000,2001,100000}'::integer[]) n;
-- kafka://broker[,broker]/topic
SELECT to_json(url) AS url, attempt(url) FROM (VALUES
    ('kafka://broker/topic'), ('kafka://broker:9092/topic'), ('kafka://a,b,c/topic'), ('kafka://a:9092,b,c:9094/topic'),
    ('kafka://127.0.0.1:9092/topic'), ('kafka://[::1]:9092/topic'), ('kafka://[::1]/topic'), ('kafka://[::1],[2001:db8::1]:9092/topic'),
    ('kafka://Broker.Example.com:9092/Shop_events.v1-all'), ('kafka://broker/a'), ('kafka://broker/0'), ('kafka://broker/.a'), ('kafka://broker/...'),
    -- no topic, or not one
    ('kafka://broker'), ('kafka://broker/'), ('kafka://broker:9092'), ('kafka://a,b'), ('kafka://broker/topic/'), ('kafka://broker/a/b'),
    ('kafka://broker//topic'), ('kafka://broker/to pic'), ('kafka://broker/topic?acks=1'), ('kafka://broker/topic#x'), ('kafka://broker/a,b'),
    ('kafka://broker/a:b'), ('kafka://broker/töpic'), ('kafka://broker/%41'), (E'kafka://broker/topic\n'), ('kafka://broker/.'), ('kafka://broker/..'),
    -- no brokers, or not all of them
    ('kafka://'), ('kafka:///topic'), ('kafka://,/topic'), ('kafka://a,/topic'), ('kafka://,a/topic'), ('kafka://a,,b/topic'), ('kafka://:9092/topic'),
    ('kafka://a,:9092/topic'), ('kafka://a b/topic'), ('kafka://a, b/topic'), (E'kafka://a\n/topic'), ('kafka://a:port/topic'), ('kafka://a:65536/topic'),
    ('kafka://a:-1/topic'), ('kafka://a:1:2/topic'), ('kafka://[::1/topic'), ('kafka://plaintext://broker/topic')
) v(url);
-- a user is no part of it, and a password would be seen
SELECT url, left(attempt(url), 5)
  FROM unnest('{kafka://user:password@broker/topic,kafka://user:password@broker:9092/topic,kafka://user@broker/topic}'::text[]) url;
SELECT n, attempt('kafka://broker/' || repeat('x', n)) AS topic FROM unnest('{249,250}'::integer[]) n;
-- Nothing has come of all this
SELECT count(*) FROM shop.endpoint WHERE NOT builtin;
--
-- shop.allowed_hosts: while it is empty, superusers and the owner of the extension may name any host
--
CREATE ROLE regress_shop_remote_reader;
CREATE ROLE regress_shop_remote_writer;
CREATE ROLE regress_shop_remote_admin;
SELECT shop.grant_access('regress_shop_remote_reader', 'read'), shop.grant_access('regress_shop_remote_writer', 'write'),
       shop.grant_access('regress_shop_remote_admin', 'admin');
SHOW shop.allowed_hosts;
CREATE TABLE public.target (n integer GENERATED ALWAYS AS IDENTITY, url text);
GRANT SELECT ON public.target TO PUBLIC;
INSERT INTO public.target (url) VALUES
    ('https://hooks.example.com/'), ('http://HOOKS.EXAMPLE.COM:8080/'), ('https://example.com/'), ('https://a.internal/'), ('https://A.B.Internal/'),
    ('https://internal/'), ('https://.internal/'), ('https://eviinternal/'), ('https://a.internal.example.com/'), ('https://hooks.example.com.evil.com/'),
    ('https://evil.com/hooks.example.com'), ('https://evil.com?hooks.example.com'), ('https://evil.com#hooks.example.com'),
    ('https://evil.com#@hooks.example.com/'), ('https://hooks%2eexample%2ecom/'), ('http://[::1]:8080/'), ('http://[::2]/'),
    ('kafka://a.internal/topic'), ('kafka://a.internal:9092,b.internal,HOOKS.example.com:9094/topic'), ('kafka://evil.com,a.internal/topic'),
    ('kafka://a.internal,evil.com:9092/topic'), ('kafka://a.internal:9092,evil.com,b.internal/topic'), ('kafka://[::1]:9092/topic'),
    ('kafka://[::1]/topic'), ('kafka://[::1]:9092,[::2]:9092/topic'), ('function:shop.receive_event');
SELECT count(*) FROM public.target WHERE attempt(url) <> 'ok';
SET ROLE regress_shop_remote_admin;
SELECT url, attempt(url) FROM public.target ORDER BY n;
SET ROLE regress_shop_remote_writer;
SELECT attempt('https://hooks.example.com/');
RESET ROLE;
-- The owner need not be a superuser
BEGIN;
SET LOCAL client_min_messages = warning;
CREATE ROLE regress_shop_remote_owner SUPERUSER;
SET LOCAL ROLE regress_shop_remote_owner;
DROP EXTENSION shop;
CREATE EXTENSION shop;
SET LOCAL ROLE NONE;
ALTER ROLE regress_shop_remote_owner NOSUPERUSER;
SELECT shop.grant_access('regress_shop_remote_admin', 'admin');
SET LOCAL ROLE regress_shop_remote_owner;
SELECT name, run_as FROM shop.create_endpoint('mine', 'https://hooks.example.com/', secret => secret_of(24));
SELECT attempt('kafka://broker/topic'), attempt('https://hooks.example.com/', '{"ca_file": "/etc/ssl/own.pem"}');
SET LOCAL ROLE regress_shop_remote_admin;
SELECT attempt('https://hooks.example.com/');
SET LOCAL ROLE NONE;
SET LOCAL shop.allowed_hosts = 'example.com';
SET LOCAL ROLE regress_shop_remote_owner;
SELECT attempt('https://hooks.example.com/');
ROLLBACK;
-- A list is for everybody
SET shop.allowed_hosts = 'hooks.example.com, *.internal,[::1]';
SET ROLE regress_shop_remote_admin;
SELECT url, attempt(url) FROM public.target ORDER BY n;
RESET ROLE;
SELECT url, attempt(url) FROM public.target ORDER BY n;
SET shop.allowed_hosts = '  "Hooks.Example.Com"  ';
SELECT url FROM public.target WHERE attempt(url) = 'ok' ORDER BY n;
-- a name is a whole name; a star stands for the beginning of one, before a dot
SELECT hosts, (SELECT coalesce(string_agg(host, ' ' ORDER BY host), 'none')
                 FROM set_config('shop.allowed_hosts', hosts, false) s,
                      unnest('{example.com,a.example.com,b.a.example.com,aexample.com,com}'::text[]) host
                WHERE s IS NOT NULL AND attempt('https://' || host || '/') = 'ok') AS allowed
  FROM unnest(ARRAY['example.com', '*.example.com', 'example.com,*.example.com', '*.com', 'a.*.com', '*example.com', '*.*.example.com', 'a.example.*',
                    'EXAMPLE.COM', '.example.com', 'https://example.com/', 'example.com:443', 'com', '%', ' ']) hosts;
-- A list of hosts, and by superusers
SELECT hosts, left(r.code, 5) AS code, r.message, r.detail
  FROM unnest(ARRAY['a,,b', ',', 'a,', ',a', 'a b', 'a;b c', '"a', '"a"', '', 'a,b']) hosts, LATERAL refusal(format('SET shop.allowed_hosts = %L', hosts)) r;
SET shop.allowed_hosts = 'a', 'b';
SHOW shop.allowed_hosts;
SET ROLE regress_shop_remote_admin;
SELECT code, message FROM refusal('SET shop.allowed_hosts = ''evil.com''');
SELECT code, message FROM refusal('RESET shop.allowed_hosts');
RESET ROLE;
RESET shop.allowed_hosts;
DROP TABLE public.target;
--
-- ca_file: who may read files of the server anyway
--
CREATE ROLE regress_shop_remote_files IN ROLE pg_read_server_files, regress_shop_remote_admin;
CREATE ROLE regress_shop_remote_noinherit NOINHERIT IN ROLE pg_read_server_files;
SELECT shop.grant_access('regress_shop_remote_noinherit', 'admin');
SET shop.allowed_hosts = '*.example.com';
SELECT attempt('https://hooks.example.com/', '{"ca_file": "/etc/ssl/own.pem"}');
SET ROLE regress_shop_remote_files;
SELECT attempt('https://hooks.example.com/', '{"ca_file": "/etc/ssl/own.pem"}');
SET ROLE regress_shop_remote_noinherit;
SELECT attempt('https://hooks.example.com/', '{"ca_file": "/etc/ssl/own.pem"}');
SET ROLE regress_shop_remote_admin;
SELECT r.* FROM refusal($$SELECT shop.create_endpoint('e', 'https://hooks.example.com/', options => '{"ca_file": "/etc/ssl/own.pem"}')$$) r;
-- of whatever kind the endpoint is; what is no name is refused to all alike
SELECT attempt(url, '{"ca_file": "/etc/ssl/own.pem"}')
  FROM unnest('{http://hooks.example.com/,kafka://hooks.example.com/topic,function:shop.receive_event}'::text[]) url;
-- and so are the settings of Kafka that name files
SELECT setting, attempt('kafka://hooks.example.com/topic', format('{"kafka": {%s: "/etc/ssl/own"}}', to_json(setting)))
  FROM unnest('{ssl.ca.location,ssl.key.location,sasl.kerberos.keytab,client.id}'::text[]) setting;
SET ROLE regress_shop_remote_files;
SELECT attempt('kafka://hooks.example.com/topic', '{"kafka": {"ssl.ca.location": "/etc/ssl/own.pem", "enable.ssl.certificate.verification": true}}');
SET ROLE regress_shop_remote_admin;
SELECT attempt('https://hooks.example.com/', '{"ca_file": ""}'), attempt('https://hooks.example.com/', '{"headers": {"x-a": "1"}}');
RESET ROLE;
RESET shop.allowed_hosts;
--
-- What can be seen of an endpoint: all but the secret, and the values of headers and of settings of Kafka
--
SET shop.allowed_hosts = '*.example.com';
SET ROLE regress_shop_remote_admin;
SELECT * FROM shop.create_endpoint('web', 'https://hooks.example.com:8443/in?shop=1', '{test.*,order.paid}', 'whsec_hushhushhushhushhushhushhushhush',
    '{"from_start": false, "max_attempts": 3, "backoff": 100, "max_backoff": 200, "timeout": 300, "in_flight": 4.0, "batch": 5,
      "headers": {"Authorization": "Bearer hush", "x-empty": "", "x-hush": "x"}}');
SELECT * FROM shop.create_endpoint('stream', 'kafka://a.example.com:9092,b.example.com/shop.events', '{test.*}', NULL,
    '{"in_flight": 10000, "kafka": {"sasl.username": "hush", "sasl.password": "hush", "linger.ms": 5, "enable.ssl.certificate.verification": true}}');
SELECT name, options FROM shop.create_endpoint('plain', 'http://hooks.example.com', '{none}', NULL, '{"headers": {}, "kafka": {}}');
RESET ROLE;
-- The names are seen, of the values not even how long they are; kept is what was given
SELECT name, options FROM shop.endpoints ORDER BY name;
SELECT name, secret, options->'headers' AS headers, options->'kafka' AS kafka FROM shop.endpoint WHERE NOT builtin ORDER BY name;
SELECT * FROM refusal($$SELECT shop.create_endpoint('web', 'kafka://a.example.com/topic')$$);
-- Where a delivery has failed (which nothing here can do)
SELECT event_id FROM shop.emit_event('test.a', 'test', 'k', '{"no": 1}') \gset
UPDATE shop.endpoint SET acked = acked + (SELECT int8multirange(int8range(event_no, event_no, '[]')) FROM shop.outbox WHERE id = :'event_id'),
       failures = 1, last_error = 'HTTP status 500' WHERE name = 'web';
INSERT INTO shop.delivery (endpoint_id, event_no, event_id, aggregateid, attempts, next_attempt_at, last_error, dead_at)
    SELECT e.endpoint_id, o.event_no, o.id, o.aggregateid, 3, shop.clock(), 'HTTP status 500', shop.clock()
      FROM shop.endpoint e, shop.outbox o WHERE e.name = 'web' AND o.id = :'event_id';
ANALYZE shop.endpoint;
-- Everything that a role can read, or is told
CREATE FUNCTION public.where_seen() RETURNS SETOF text
    LANGUAGE plpgsql AS $$
DECLARE
    relation regclass;
    seen boolean;
BEGIN
    FOR relation IN SELECT oid FROM pg_class WHERE relnamespace = 'shop'::regnamespace AND relkind IN ('r', 'v', 'm')
                       AND has_schema_privilege('shop', 'USAGE') AND has_any_column_privilege(oid, 'SELECT')
    LOOP
        EXECUTE format('SELECT EXISTS (SELECT FROM %s x WHERE replace(x::text, ''x-hush'', '''') LIKE ''%%hush%%'')', relation) INTO seen;
        IF seen THEN
            RETURN NEXT relation::text;
        END IF;
    END LOOP;
    RETURN QUERY SELECT 'pg_stats' FROM pg_stats s WHERE schemaname = 'shop' AND s::text LIKE '%hush%' LIMIT 1;
    IF has_function_privilege('shop.outbox_metrics()', 'EXECUTE') THEN
        RETURN QUERY SELECT 'outbox_metrics()' FROM shop.outbox_metrics() m WHERE m::text LIKE '%hush%' LIMIT 1;
    END IF;
END
$$;
SELECT DISTINCT where_seen() AS by_a_superuser ORDER BY 1;
SET ROLE regress_shop_remote_admin;
SELECT where_seen();
SELECT * FROM shop.endpoints ORDER BY name;
SELECT endpoint, state, pending, retrying, dead, delivered_total, last_error FROM shop.outbox_metrics();
SELECT endpoint, type, aggregateid, payload, attempts, last_error, dead_at FROM shop.dead_letters;
SELECT count(*) FROM (SELECT shop.pause_endpoint(name)::text AS said FROM shop.endpoints
                      UNION ALL SELECT shop.resume_endpoint(name)::text FROM shop.endpoints) a WHERE replace(said, 'x-hush', '') LIKE '%hush%';
SELECT call, refused(call) FROM unnest('{SELECT secret FROM shop.endpoint,SELECT options FROM shop.endpoint,TABLE shop.delivery}'::text[]) call;
-- a function that leaks is not called with more than is shown
CREATE FUNCTION pg_temp.leak(value text) RETURNS boolean
    LANGUAGE plpgsql COST 0.0000001 AS $$ BEGIN IF replace(value, 'x-hush', '') ~ 'hush' THEN RAISE 'seen: %', value; END IF; RETURN true; END $$;
SELECT count(*) FROM shop.endpoints WHERE pg_temp.leak(options::text) AND pg_temp.leak(url) AND pg_temp.leak(name);
SET ROLE regress_shop_remote_writer;
SELECT where_seen();
SELECT call, refused(call) FROM unnest('{TABLE shop.endpoints,TABLE shop.dead_letters,SELECT shop.outbox_metrics(),TABLE shop.endpoint,TABLE shop.delivery,TABLE shop.outbox,
                                   SELECT shop.drop_endpoint(''web''),SELECT shop.pause_endpoint(''web''),SELECT shop.resume_endpoint(''web'')}'::text[]) call;
SET ROLE regress_shop_remote_reader;
SELECT where_seen();
SELECT call, refused(call) FROM unnest('{TABLE shop.endpoints,TABLE shop.dead_letters,SELECT shop.outbox_metrics(),TABLE shop.endpoint,TABLE shop.delivery,TABLE shop.outbox,
                                   SELECT shop.drop_endpoint(''web''),SELECT shop.pause_endpoint(''web''),SELECT shop.resume_endpoint(''web'')}'::text[]) call;
-- no error says any of it
SET ROLE regress_shop_remote_admin;
SELECT arguments, r.code, concat_ws(' ', r.message, r.detail, r.hint) ~ 'hush' AS said FROM (VALUES
    ($$'web', 'https://hooks.example.com/', secret => 'whsec_hushhushhushhushhushhushhushhush', options => '{"headers": {"x-a": "hush"}}'$$),
    ($$'e', 'https://elsewhere.com/', secret => 'whsec_hushhushhushhushhushhushhushhush', options => '{"headers": {"x-a": "hush"}}'$$),
    ($$'e', 'ftp://hooks.example.com/', secret => 'whsec_hushhushhushhushhushhushhushhush', options => '{"headers": {"x-a": "hush"}}'$$),
    ($$'e', 'function:public.unknown', secret => 'hush'$$),
    ($$'e', 'https://hooks.example.com/', secret => 'hush'$$),
    ($$'e', 'https://hooks.example.com/', secret => 'whsec_hush'$$),
    ($$'e', 'https://hooks.example.com/', secret => 'whsec_hush hush hush'$$),
    ($$'e', 'https://user:hush@hooks.example.com/'$$),
    ($$'e', 'kafka://user:hush@hooks.example.com/topic'$$),
    ($$'e', 'kafka://user:hush@hooks.example.com:9092/topic'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": "hush"}'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": {"x a": "hush"}}'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": {"x-a": "hush\n"}}'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": {"x-a": ["hush"]}}'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": {"authorization": "hush", "host": "hush"}}'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": {"authorization": "hush"}, "unknown": "hush"}'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": {"authorization": "hush"}, "timeout": "hush"}'$$),
    ($$'e', 'https://hooks.example.com/', options => '{"headers": {"authorization": "hush"}, "ca_file": "/hush"}'$$),
    ($$'e', 'kafka://hooks.example.com/topic', options => '{"kafka": "hush"}'$$),
    ($$'e', 'kafka://hooks.example.com/topic', options => '{"kafka": {"sasl.password": "hush", "sasl.username": ["hush"]}}'$$),
    ($$'e', 'kafka://hooks.example.com/', options => '{"kafka": {"sasl.password": "hush"}}'$$)
) v(arguments), LATERAL refusal('SELECT shop.create_endpoint(' || v.arguments || ')') r;
RESET ROLE;
RESET shop.allowed_hosts;
\a
--
-- What a remote endpoint did not take is sent again like any other
--
SELECT shop.redrive('web', :'event_id');
SELECT endpoint, state, retrying, dead FROM shop.outbox_metrics() WHERE endpoint = 'web';
SELECT event_id = :'event_id' AS same_id, attempts, dead_at, suspect FROM shop.delivery;
SELECT * FROM shop.verify();
SELECT name, url, delivered_total FROM shop.drop_endpoint('web');
SELECT count(*) FROM shop.delivery;
--
-- deliver_events() is for those in the database, and leaves the others alone
--
CREATE TABLE public.got (n serial, data jsonb);
CREATE FUNCTION public.take(event jsonb) RETURNS void
    LANGUAGE sql AS $$ INSERT INTO public.got (data) VALUES (event) $$;
SELECT name FROM shop.create_endpoint('web', 'https://hooks.example.com/', '{test.*}');
SELECT name FROM shop.create_endpoint('here', 'function:public.take', '{test.*}');
SELECT shop.emit_event('test.a', 'test', 'k' || n, to_jsonb(n)) IS NOT NULL AS emitted FROM generate_series(1, 3) n;
CREATE TABLE public.before AS SELECT * FROM shop.endpoint WHERE name IN ('web', 'stream', 'plain');
SELECT shop.deliver_events(max_events => 2), shop.deliver_events(), shop.deliver_events();
SELECT endpoint, state, pending, retrying, dead, delivered_total FROM shop.outbox_metrics();
SELECT count(*) FROM (TABLE public.before EXCEPT TABLE shop.endpoint) changed;
SELECT count(*) FROM shop.delivery;
-- one of them by name: there is such an endpoint, but nothing is delivered to it
SELECT name, r.code <> 'SH401' AS is_known FROM unnest('{web,stream,nowhere}'::text[]) name, LATERAL refusal(format('SELECT shop.deliver_events(%L)', name)) r;
SELECT count(*) FROM (TABLE public.before EXCEPT TABLE shop.endpoint) changed;
DROP TABLE public.before;
-- nor do the workers' jobs, called; and what they wait for is kept
SET shop.outbox_retention = 0;
SELECT shop.run_maintenance() IS NOT NULL AS done, shop.refresh_popular_products() IS NOT NULL AS refreshed;
SELECT count(*) FROM shop.outbox WHERE type = 'test.a';
RESET shop.outbox_retention;
--
-- pause, resume, drop
--
SET ROLE regress_shop_remote_admin;
SELECT name, state, pause_reason FROM shop.pause_endpoint('web');
SELECT name, state, pause_reason FROM shop.pause_endpoint('stream');
SELECT endpoint, state, pending FROM shop.outbox_metrics();
SELECT name, state, pause_reason FROM shop.resume_endpoint('web');
SELECT name, state, pause_reason FROM shop.resume_endpoint('web');
SELECT name, state, pause_reason FROM shop.resume_endpoint('stream');
RESET ROLE;
-- it goes on at once, wherever it stood; its progress is what it was
UPDATE shop.endpoint SET failures = 25, retry_at = 'infinity', last_error = 'HTTP status 503' WHERE name = 'web';
SELECT name, state, last_error FROM shop.endpoints WHERE name = 'web';
SELECT name, state, last_error FROM shop.resume_endpoint('web');
SELECT failures, retry_at FROM shop.endpoint WHERE name = 'web';
UPDATE shop.endpoint SET paused = true, pause_reason = 'HTTP status 410' WHERE name = 'web';
SELECT name, state, pause_reason FROM shop.endpoints WHERE name = 'web';
SELECT name, state, pause_reason FROM shop.resume_endpoint('web');
SELECT endpoint, state, pending FROM shop.outbox_metrics();
SELECT name, state FROM shop.drop_endpoint('web');
SELECT code, message, detail FROM refusal($$SELECT shop.resume_endpoint('web')$$);
-- a name that is free again starts anew
SELECT name, url, state, delivered_total, last_error FROM shop.create_endpoint('web', 'http://other.example.com/', '{test.*}');
SELECT endpoint, pending FROM shop.outbox_metrics() WHERE endpoint = 'web';
SELECT name FROM shop.drop_endpoint('web');
-- from the oldest that is kept
SELECT name FROM shop.create_endpoint('web', 'https://hooks.example.com/', '{test.*}', options => '{"from_start": true}');
SELECT pending = (SELECT max(event_no) - min(event_no) + 1 FROM shop.outbox) AS all_of_it FROM shop.outbox_metrics() WHERE endpoint = 'web';
--
-- Another secret: one, two while one replaces the other, none; it is shown to nobody
--
SELECT name FROM shop.create_endpoint('signs', 'https://hooks.example.com/', '{none}', secret_of(24));
SET ROLE regress_shop_remote_admin;
SELECT name, signed, state FROM shop.set_endpoint_secret('signs', secret_of(32) || ' ' || secret_of(24));
RESET ROLE;
SELECT secret = secret_of(32) || ' ' || secret_of(24) AS both FROM shop.endpoint WHERE name = 'signs';
SELECT signed FROM shop.set_endpoint_secret('signs', NULL);
SELECT secret FROM shop.endpoint WHERE name = 'signs';
-- it must be one that can sign; the secret of a function is what you like
SELECT arguments, r.code, r.message, r.detail FROM unnest(ARRAY[$$'signs', 'hush'$$, $$'signs', 'whsec_hush'$$, $$'signs', ''$$,
    $$'nobody', secret_of(24)$$, $$NULL, secret_of(24)$$, $$'shop.fold_sales', 'hush'$$]) arguments,
    LATERAL refusal('SELECT shop.set_endpoint_secret(' || arguments || ')') r;
SELECT signed FROM shop.set_endpoint_secret('here', 'hush');
SET ROLE regress_shop_remote_writer;
SELECT refused($$SELECT shop.set_endpoint_secret('signs', secret_of(24))$$);
RESET ROLE;
SELECT name FROM shop.drop_endpoint('signs');
--
-- In a copy of the database nothing leaves until it is told to
--
UPDATE shop.endpoint SET system_identifier = system_identifier + 1 WHERE name = 'web';
UPDATE shop.endpoint SET database_oid = 1 WHERE name = 'stream';
SELECT name, state, pause_reason FROM shop.endpoints WHERE name IN ('web', 'stream') ORDER BY name;
SELECT endpoint, state FROM shop.outbox_metrics() WHERE endpoint IN ('web', 'stream');
SET ROLE regress_shop_remote_admin;
-- to pause it does not make it the copy's own
SELECT name, state, pause_reason FROM shop.pause_endpoint('stream');
RESET ROLE;
SELECT name, shop.is_home(system_identifier, database_oid) FROM shop.endpoint WHERE name IN ('web', 'stream') ORDER BY name;
SELECT name, state, pause_reason FROM shop.resume_endpoint('stream');
SELECT name, state, pause_reason FROM shop.resume_endpoint('web');
SELECT name, shop.is_home(system_identifier, database_oid) FROM shop.endpoint WHERE name IN ('web', 'stream') ORDER BY name;
-- and one that is dropped in the copy need not be resumed for it
UPDATE shop.endpoint SET system_identifier = system_identifier + 1 WHERE name = 'stream';
SELECT name, state, pause_reason FROM shop.drop_endpoint('stream');
--
-- What a sender notes: nothing, where there is none
--
SELECT table_name, column_name, data_type, is_nullable, column_default
  FROM information_schema.columns WHERE table_schema = 'shop' AND column_name IN ('inflight', 'suspect') ORDER BY 1;
SELECT count(*), count(inflight) AS with_inflight FROM shop.endpoint;
CREATE FUNCTION public.never(event jsonb) RETURNS void LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'never'; END $$;
SELECT name FROM shop.create_endpoint('failing', 'function:public.never', '{test.*}', options => '{"max_attempts": 2}');
SELECT shop.emit_event('test.a', 'test', 'k', '4') IS NOT NULL AS emitted;
SELECT shop.deliver_events('failing');
SET shop.test_clock = '2026-11-20 12:01:00+00';
SELECT shop.deliver_events('failing');
SELECT attempts, dead_at, suspect FROM shop.delivery;
SELECT count(inflight) FROM shop.endpoint;
SELECT name FROM shop.drop_endpoint('failing');
--
-- shop.traceparent
--
\a
SHOW shop.traceparent;
SELECT to_json(value) AS value, CASE r.code WHEN '00000' THEN 'ok' ELSE concat_ws(' ', r.code, r.detail) END AS said
  FROM unnest(ARRAY[
    '', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00',
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-ff', '00-00000000000000000000000000000001-0000000000000001-00',
    -- capitals, other letters, other signs
    '00-4BF92F3577B34DA6A3CE929D0E0E4736-00F067AA0BA902B7-01', '00-4bf92f3577b34da6a3ce929d0e0e473g-00f067aa0ba902b7-01',
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x', '00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01',
    '00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7 01',
    -- too short, too long
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-011',
    '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7',
    '4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-the-future-will-be-like',
    ' 00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01 ',
    E'00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01\r\nx-a: 1', ' ', 'off', 'é',
    -- another version, and the one there will never be
    '01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01', 'ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01',
    -- no trace, no parent
    '00-00000000000000000000000000000000-00f067aa0ba902b7-01', '00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01'
  ]) value, LATERAL refusal(format('SET shop.traceparent = %L', value)) r;
\a
SHOW shop.traceparent;
SELECT message FROM refusal('SET shop.traceparent = ''00-xyz''');
-- Anybody may set it, whatever else he may; his events carry it, the shop's own too
TRUNCATE public.got;
SET ROLE regress_shop_remote_reader;
SET shop.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
RESET shop.traceparent;
SET ROLE regress_shop_remote_writer;
SELECT shop.emit_event('test.a', 'test', 'none', '1') IS NOT NULL AS emitted;
SET shop.traceparent = '00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01';
SELECT shop.emit_event('test.a', 'test', 'one', '2') IS NOT NULL AS emitted;
SELECT balance FROM shop.charge_points(7, 100);
BEGIN;
SET LOCAL shop.traceparent = '00-ffffffffffffffffffffffffffffffff-00f067aa0ba902b7-00';
SELECT shop.emit_event('test.a', 'test', 'two', '3') IS NOT NULL AS emitted;
COMMIT;
SELECT shop.emit_event('test.a', 'test', 'one again', '4') IS NOT NULL AS emitted;
SET shop.traceparent = '';
SELECT shop.emit_event('test.a', 'test', 'empty', '5') IS NOT NULL AS emitted;
RESET ROLE;
SELECT type, aggregateid, traceparent FROM shop.outbox WHERE event_no > (SELECT max(event_no) - 6 FROM shop.outbox) ORDER BY event_no;
-- An event keeps the one that it was written under, whoever delivers it
SET shop.traceparent = '00-00000000000000000000000000000099-0000000000000099-01';
SELECT shop.deliver_events('here') >= 5 AS delivered;
RESET shop.traceparent;
SELECT data->>'subject' AS subject, data->>'traceparent' AS traceparent, data ? 'traceparent' AS has_one
  FROM public.got WHERE data->>'subject' !~ '^k' ORDER BY n;
SELECT jsonb_object_keys(data) AS key FROM public.got WHERE data->>'subject' = 'one' ORDER BY 1;
SELECT count(*) FROM shop.endpoints WHERE state <> 'active';
SELECT * FROM shop.verify();
\set ECHO none
SELECT count(shop.drop_endpoint(name)) > 0 AS dropped FROM shop.endpoints \gset
RESET shop.test_clock;
DROP TABLE public.got;
DROP FUNCTION public.attempt(text, text, text), public.secret_of(integer), public.where_seen(), public.take(jsonb), public.never(jsonb),
    pg_temp.leak(text);
DROP OWNED BY regress_shop_remote_reader, regress_shop_remote_writer, regress_shop_remote_admin, regress_shop_remote_files, regress_shop_remote_noinherit;
DROP ROLE regress_shop_remote_reader, regress_shop_remote_writer, regress_shop_remote_admin, regress_shop_remote_files, regress_shop_remote_noinherit;
